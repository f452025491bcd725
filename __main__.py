"""python -m onestep_sr"""

from .sr_models.commands.cli import main

main()
