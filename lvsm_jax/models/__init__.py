"""The models: cameras, attention, layers, Efficient-LVSM and the two LVSMs."""
