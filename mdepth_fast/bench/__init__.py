"""Side-by-side measurements of ops, losses and networks: plain PyTorch, `torch.compile` of it, and every backend.

`cases` says what is measured, `measure` how, `report` what is written about it.
"""
