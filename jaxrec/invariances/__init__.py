"""What a network ignores: an observer's verdict, witnesses, and samples of the inputs that it maps to the same output.

`observers` and `verdict` say what is ignored, `witness` searches for proof by
gradient, `known` holds networks on which both were tried. Of the rest:

A conditional autoencoder describes inputs x given y = f(x) by a code z; a
conditional flow t turns z given y into noise v that is independent of y. New
noise then gives new inputs, `x' = D(t^-1(v | y), y)`, with the same output.
Everything here receives functions and knows no networks.
"""

from jaxrec.invariances.analysis import Component as Component
from jaxrec.invariances.analysis import band_pass as band_pass
from jaxrec.invariances.analysis import components as components
from jaxrec.invariances.analysis import deviations as deviations
from jaxrec.invariances.analysis import excess_variation as excess_variation
from jaxrec.invariances.analysis import family_threshold as family_threshold
from jaxrec.invariances.analysis import rank_by_component as rank_by_component
from jaxrec.invariances.observers import Detection as Detection
from jaxrec.invariances.observers import Statistics as Statistics
from jaxrec.invariances.observers import observe as observe
from jaxrec.invariances.observers import site_statistics as site_statistics
from jaxrec.invariances.observers import statistics_of as statistics_of
from jaxrec.invariances.sampling import Consistency as Consistency
from jaxrec.invariances.sampling import Invariances as Invariances
from jaxrec.invariances.sampling import Moments as Moments
from jaxrec.invariances.sampling import Sampler as Sampler
from jaxrec.invariances.sampling import consistency as consistency
from jaxrec.invariances.sampling import distance as distance
from jaxrec.invariances.sampling import diversity as diversity
from jaxrec.invariances.sampling import noise_moments as noise_moments
from jaxrec.invariances.sampling import rank as rank
from jaxrec.invariances.sampling import sample as sample
from jaxrec.invariances.verdict import Verdict as Verdict
from jaxrec.invariances.verdict import difference as difference
from jaxrec.invariances.verdict import judge as judge
