"""What is handed to others' tools to run us: containers, units, manifests, monitoring."""
