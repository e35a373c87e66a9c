"""python -m llmgallery"""

from llmgallery.cli import main

if __name__ == "__main__":
    main(prog_name="llmgallery")
