"""``python -m medxai`` is the command ``medxai``."""

from medxai.cli import main

if __name__ == "__main__":
    main()
