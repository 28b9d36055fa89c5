"""mtdiff list: what there is to train, and what is trained."""

from dataclasses import dataclass

from mtdiff.checkpoint import shipped
from mtdiff.experiments import EXPERIMENTS
from mtdiff.files import CARD
from mtdiff.reading import read_json
from mtdiff.trainable import Model


@dataclass
class List:
    """Say what there is: experiments with their data and variants, and the models that come with mtdiff."""

    def run(self) -> None:
        """Print both lists."""
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}\n  data: {', '.join(experiment.data)}\n  variants:")
            for variant, text in experiment.variants.items():
                print(f"    {variant:18} {text}")
        print("\nmodels that come with mtdiff (mtdiff info MODEL says more):")
        for path in sorted(shipped().rglob(CARD)):
            card = read_json(path, "is not a model card")
            if card["config"]["kind"] in Model.known():
                training = card["training"]
                steps = f"{training.get('taken', training['steps']):,} steps of {training['batch_size']}"
                name = f"{path.parent.relative_to(shipped())!s:34}"
                print(f"  {name} {card['variant']:14} {steps} on {card['data']['name']}")
