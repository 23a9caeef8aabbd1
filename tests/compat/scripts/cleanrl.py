"""Reinforcement learning in the way of single-file agents: TensorBoard writes, wandb copies, a video now and then."""

import argparse
import os
import random
import time

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--exp-name", type=str, default=os.path.basename(__file__)[: -len(".py")])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--track", action="store_true")
    parser.add_argument("--wandb-project-name", type=str, default="cleanRL")
    parser.add_argument("--wandb-entity", type=str, default=None)
    parser.add_argument("--env-id", type=str, default="Bandit-v0")
    parser.add_argument("--total-timesteps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--everywhere", type=lambda text: text == "True", default=False)
    return parser.parse_args()


class Bandit:
    """Two arms; the second pays."""

    def step(self, action):
        return np.array([1.0, 0.0], np.float32), float(action == 1)


if __name__ == "__main__":
    args = parse_args()
    rank = int(os.environ.get("RANK", 0))
    if rank == 0 or args.everywhere:
        run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
        if args.track:
            import wandb

            wandb.init(
                project=args.wandb_project_name,
                entity=args.wandb_entity,
                sync_tensorboard=True,
                config=vars(args),
                name=run_name,
                monitor_gym=True,
                save_code=True,
            )
        writer = SummaryWriter(f"runs/{run_name}-{rank}")
        writer.add_text(
            "hyperparameters",
            "|param|value|\n|-|-|\n%s" % ("\n".join([f"|{key}|{value}|" for key, value in vars(args).items()])),
        )
        random.seed(args.seed)
        torch.manual_seed(args.seed)
        envs, agent = Bandit(), torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
        obs, start_time = torch.tensor([1.0, 0.0]), time.time()
        for global_step in range(1, args.total_timesteps + 1):
            dist = torch.distributions.Categorical(logits=agent(obs))
            action = dist.sample()
            _, reward = envs.step(action.item())
            loss = -dist.log_prob(action) * reward
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if global_step % 10 == 0:
                writer.add_scalar("charts/episodic_return", reward, global_step)
                writer.add_scalar("losses/policy_loss", loss.item(), global_step)
                writer.add_scalar("charts/SPS", int(global_step / (time.time() - start_time + 1)), global_step)
        writer.add_histogram("weights", agent.weight, global_step)
        if args.track:
            wandb.log({"media/video": wandb.Video(np.zeros((3, 3, 8, 8), np.uint8), fps=30, format="gif")})
        writer.close()
        if args.track:
            wandb.finish()
