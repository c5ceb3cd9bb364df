"""Speed, side by side with what a user could take instead, and with the machine's floor."""
