"""The embedded default: a seeded corpus, three small base models pretrained on it, and tasks that move them."""

from pathlib import Path

FOLDER = Path(__file__).parent
DATA = FOLDER / "data"
TASKS = FOLDER / "tasks"
MODELS = FOLDER / "models"
