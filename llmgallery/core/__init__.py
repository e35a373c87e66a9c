"""The vocabulary: frozen value types that every layer speaks. No I/O."""
