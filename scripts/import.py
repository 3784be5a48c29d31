"""A model trained with other code: `python scripts/import.py model.pt --vocab data/penn --output imported`."""

from lstmlm.cli import import_model, main

if __name__ == "__main__":
    main(import_model)
