"""Runs one model on one data set inside RecBole; without arguments, VLM2Rec on minishop.

    python run_recbole_vlm2rec.py --model=VLM2Rec --dataset=minishop --key=value …

The same as `recbole-vlm2rec run …`; `--help` lists models and keys.
"""

import sys

from recbole_vlm2rec.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
