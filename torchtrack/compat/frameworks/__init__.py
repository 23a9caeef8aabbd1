"""What wandb has for other frameworks: the framework is imported when something of it is used, not before."""
