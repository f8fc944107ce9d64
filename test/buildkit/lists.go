package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// passes is the file of the tests of a suite that kilnd has passed, and must pass.
func (s suite) passes() string { return filepath.Join(source(), "passes", s.name+".txt") }

// hollow is the file of the tests of a suite that a server passes which does nothing.
func (s suite) hollow() string { return filepath.Join(source(), "passes/hollow", s.name+".txt") }

// readList reads a sorted list of tests, one on a line. One that does not exist is empty.
func readList(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	return strings.Fields(string(data)), err
}

// addToList adds tests to a list.
func addToList(path string, names []string) error {
	list, err := readList(path)
	if err != nil {
		return err
	}
	list = append(list, names...)
	slices.Sort(list)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.Join(slices.Compact(list), "\n")+"\n"), 0o644)
}
