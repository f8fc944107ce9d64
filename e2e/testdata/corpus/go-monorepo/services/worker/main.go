package main

import "example.org/shared"

func main() { shared.Greet("worker") }
