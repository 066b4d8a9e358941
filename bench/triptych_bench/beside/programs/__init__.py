"""What runs in the environments of the products, started as scripts. It imports nothing of Triptych."""
