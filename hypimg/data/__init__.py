"""Images: found in a folder by their form, decoded once into a store, handed on as uint8."""
