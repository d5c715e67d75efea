"""Plug-ins: where packs of trials run. In this process, in processes of this machine, or as Slurm jobs; one interface."""
