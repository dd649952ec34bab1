"""How trials run: Ray, processes, warm slots."""
