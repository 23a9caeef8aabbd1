"""Two models and two optimizers; the discriminator has two backward calls a step, the generator one."""

from __future__ import annotations

import torch
from digest import digest

torch.manual_seed(0)
bce = torch.nn.functional.binary_cross_entropy_with_logits
generator = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
discriminator = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=0.02)
for _ in range(5):
    real, fake = torch.randn(8, 2), generator(torch.randn(8, 4))
    of_discriminator.zero_grad()
    on_real = bce(discriminator(real), torch.ones(8, 1))
    on_real.backward()
    on_fake = bce(discriminator(fake.detach()), torch.zeros(8, 1))
    on_fake.backward()
    of_discriminator.step()
    of_generator.zero_grad()
    fooled = bce(discriminator(fake), torch.ones(8, 1))
    fooled.backward()
    of_generator.step()
    print("discriminator", on_real.item(), on_fake.item())
    print("generator", fooled.item())
print(digest([*generator.parameters(), *discriminator.parameters()]))
