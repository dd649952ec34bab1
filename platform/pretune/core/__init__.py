"""What a sweep is and decides, as values and functions of its journal. Knows neither Ray, torch nor rich."""
