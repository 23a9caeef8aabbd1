"""Who this process is: its place in the job, the run all ranks share, and the attempt."""

from torchtrack.job.identity import Identity, ResumeError
from torchtrack.job.job import Job
from torchtrack.job.world import World, is_dataloader_worker, job_key, restart_count

__all__ = ["Identity", "Job", "ResumeError", "World", "is_dataloader_worker", "job_key", "restart_count"]
