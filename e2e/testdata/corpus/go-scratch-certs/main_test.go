package main

import "testing"

func TestSay(t *testing.T) {
	if say() == "" {
		t.Error("nothing is said")
	}
}
