package emulation

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Each machine's program exits with status 0, as its emulator has it.
func TestPrograms(t *testing.T) {
	for _, m := range machines {
		emulator, err := exec.LookPath("qemu-" + m.qemu + "-static")
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(name, m.program(), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(emulator, name).CombinedOutput(); err != nil {
			t.Errorf("%s: %v, %s", m.architecture, err, out)
		}
		// What it does shows in that it is not done: a program that is cut off before its end crashes.
		text := m.program()
		if err := os.WriteFile(name, text[:len(text)-4], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := exec.Command(emulator, name).Run(); err == nil {
			t.Errorf("%s: a program without an end ended well", m.architecture)
		}
	}
}
