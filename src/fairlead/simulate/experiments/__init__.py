"""The experiments E1 to E7: what the papers report, and what the simulator gives. One file an experiment."""

from fairlead.simulate.experiments.base import Experiment
from fairlead.simulate.experiments.e1 import E1
from fairlead.simulate.experiments.e2 import E2
from fairlead.simulate.experiments.e3 import E3
from fairlead.simulate.experiments.e4 import E4
from fairlead.simulate.experiments.e5 import E5
from fairlead.simulate.experiments.e7 import E7

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (E1, E2, E3, E4, E5, E7)}
