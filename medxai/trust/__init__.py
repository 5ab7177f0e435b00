"""How far a map can be trusted: localisation, faithfulness, robustness, randomisation, and the gate that uses them."""
