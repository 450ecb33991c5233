"""What the tests share: the simulator, a failing disk, a network, real processes, the checker, mutants."""
