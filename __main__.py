"""python -m onestep_sr"""

from .sr_models.cli import main

main()
