"""Make the token ids that training needs: `python scripts/prepare.py --config configs/smoke.yaml`."""

from lstmlm.cli import main, prepare

if __name__ == "__main__":
    main(prepare)
