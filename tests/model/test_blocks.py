import torch

from dual_denoising.model import blocks


def test_adaln_block_at_init_is_the_identity():
    block = blocks.AdaLNZeroBlock(12, 3)
    blocks.initialise(block)
    x, condition = torch.randn(2, 5, 12), torch.randn(2, 12)
    assert torch.equal(block(x, condition), x)


def test_cross_attention_starts_alive_and_its_mlp_shut():
    block = blocks.CrossAttentionBlock(12, 3)
    blocks.initialise(block)
    x, points, condition = torch.randn(1, 2, 12), torch.randn(1, 7, 12), torch.randn(2, 12)
    kv = block.norm_points(points)
    read, _ = block.attention(block.norm_query(x), kv, kv)
    torch.testing.assert_close(block(x, points, condition), x + read)
    assert read.abs().max() > 0.01


def test_timesteps_embed_as_sinusoids():
    embedder = blocks.TimestepEmbedder(8)
    caught = []
    embedder.mlp.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    embedder(torch.tensor([0, 3]))
    assert torch.equal(caught[0][0, :128], torch.ones(128))
    torch.testing.assert_close(caught[0][1, 128], torch.tensor(3.0).sin())
