from dual_denoising.training.loggers import wandb


def test_wandb_works_offline_and_off(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for mode in ("offline", "disabled"):
        folder = tmp_path / mode
        log = wandb(str(folder), "dual-denoising", "run", mode)
        log({"loss": 1.5}, step=1)
        log.__self__.finish()
    again = wandb(str(tmp_path / "offline"), "dual-denoising", "run", "disabled").__self__
    assert again.id == (tmp_path / "offline" / "wandb_id.txt").read_text()
    (record,) = (tmp_path / "offline").glob("wandb/offline-run-*/*.wandb")
    assert record.stat().st_size
    assert not list((tmp_path / "disabled").glob("wandb/offline-run-*"))
