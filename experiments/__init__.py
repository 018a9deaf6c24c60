"""What trainings take, and how they scale: questions before and after. Nothing here trains, or imports torch."""
