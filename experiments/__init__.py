"""What trainings take, and how they scale: questions before and after.

Only `coordinates` trains, for a few steps, and imports torch.
"""
