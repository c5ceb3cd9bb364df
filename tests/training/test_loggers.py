from dual_denoising.training.loggers import WandbLogger


def test_wandb_works_offline_and_off(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for mode in ("offline", "disabled"):
        folder = tmp_path / mode
        logger = WandbLogger(str(folder), "dual-denoising", "run", mode)
        logger.log({"loss": 1.5}, step=1)
        logger.run.finish()
    again = WandbLogger(str(tmp_path / "offline"), "dual-denoising", "run", "disabled")
    assert again.run.id == (tmp_path / "offline" / "wandb_id.txt").read_text()
    (record,) = (tmp_path / "offline").glob("wandb/offline-run-*/*.wandb")
    assert b"loss" in record.read_bytes()
    assert not list((tmp_path / "disabled").glob("wandb/offline-run-*"))
