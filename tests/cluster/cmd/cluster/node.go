package main

func runNode(args []string) error { return nil }
