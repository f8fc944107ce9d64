// Package program says why a program in a root file system cannot be executed, where the kernel and shells say no more than "not found" or
// "permission denied". It runs nothing, and reads no more of a file than its beginning.
package program

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

const (
	// maxHead is how much of a file is read, in bytes: more than the kernel reads of a script's first line, see execve(2).
	maxHead = 4 << 10
	// maxCommands is how many commands of a script are looked at.
	maxCommands = 64
)

// Fault is why a file cannot be executed.
type Fault struct {
	// NotFound reports that the kernel says ENOENT, and shells "not found", although the file exists. Otherwise they say that it is not
	// permitted, or no program.
	NotFound bool
	// Foreign reports that it is a program for another architecture, which shells take for a script.
	Foreign bool
	// Text is a clause that names the file, and says what to do.
	Text string
}

// Finder looks for what is wrong with programs of a step.
type Finder struct {
	// Root is the root file system.
	Root *rootfs.Root
	// Dir is the working directory, and Env has PATH.
	Dir string
	Env []string
	// Architecture is that of the step, which this machine executes although its own may be another.
	Architecture string
}

// file returns why the file at a path of the root file system cannot be executed; nil if nothing seems to be wrong, or it does not exist.
// name is what people call the file.
func (x *Finder) file(file, name string) *Fault {
	f, err := x.Root.OpenFile(file, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil
	case info.IsDir():
		return &Fault{Text: fmt.Sprintf("%s is a directory", name)}
	case !info.Mode().IsRegular():
		return nil
	case info.Mode().Perm()&0o111 == 0:
		return &Fault{Text: fmt.Sprintf("%s is not executable: COPY --chmod=755, chmod +x before the build or RUN chmod +x make it so", name)}
	}
	head := make([]byte, maxHead)
	n, err := f.ReadAt(head, 0)
	if n == 0 && err != nil {
		return nil
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("\xef\xbb\xbf#!")):
		return &Fault{Text: fmt.Sprintf("%s begins with a byte order mark, so that the kernel does not see #!: save it as UTF-8 without one", name)}
	case bytes.HasPrefix(head, []byte("#!")):
		return script(x.Root, head, name)
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return x.binary(f, head, name)
	}
	return nil
}

// script looks at a file that begins with #!.
func script(root *rootfs.Root, head []byte, name string) *Fault {
	line, _, _ := bytes.Cut(head[2:], []byte("\n"))
	if bytes.HasSuffix(line, []byte("\r")) {
		return &Fault{NotFound: true, Text: fmt.Sprintf("the lines of %s end as on Windows, so its interpreter is %q: "+
			"save it with LF alone (git: *.sh text eol=lf in .gitattributes), or RUN sed -i 's/\\r$//' %s", name, strings.TrimSpace(string(line[:len(line)-1]))+"\r", name)}
	}
	fields := strings.Fields(string(line))
	if len(fields) == 0 || !path.IsAbs(fields[0]) || exists(root, fields[0]) {
		return nil
	}
	return &Fault{NotFound: true, Text: fmt.Sprintf("%s begins with #!%s, and the image has no such program", name, fields[0])}
}

// exists reports whether a path leads to something.
func exists(root *rootfs.Root, name string) bool {
	f, err := root.OpenFile(name, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// machines are the e_machine of elf(5) by architecture.
var machines = map[uint16]string{3: "386", 62: "amd64", 40: "arm", 183: "arm64", 243: "riscv64", 22: "s390x", 21: "ppc64le", 258: "loong64"}

// binary looks at an ELF file. See elf(5).
func (x *Finder) binary(f io.ReaderAt, head []byte, name string) *Fault {
	if len(head) < 64 || head[5] != 1 && head[5] != 2 {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	machine := machines[order.Uint16(head[18:])]
	if machine != "" && machine != runtime.GOARCH && machine != x.Architecture && !(machine == "386" && runtime.GOARCH == "amd64") {
		return &Fault{Foreign: true, Text: fmt.Sprintf("%s is a program for %s, and the step is for %s", name, machine, x.Architecture)}
	}
	loader := loaderOf(f, head, order)
	if loader == "" || !path.IsAbs(loader) || exists(x.Root, loader) {
		return nil
	}
	library := "another C library or architecture"
	switch base := path.Base(loader); {
	case strings.HasPrefix(base, "ld-musl"):
		library = "musl, as Alpine's are"
	case strings.HasPrefix(base, "ld-linux"):
		library = "glibc, which Alpine does not have"
	}
	return &Fault{NotFound: true, Text: fmt.Sprintf("%s needs the loader %s, and the image has none: the program is made for %s", name, loader, library)}
}

// maxHeaders bounds the program headers that are looked at.
const maxHeaders = 64

// loaderOf returns the program interpreter of an ELF file; "" for none.
func loaderOf(f io.ReaderAt, head []byte, order binary.ByteOrder) string {
	wide := head[4] == 2
	word := func(b []byte, narrow, long int) int64 {
		if wide {
			return int64(order.Uint64(b[long:]))
		}
		return int64(order.Uint32(b[narrow:]))
	}
	size, count, at := 32, int(order.Uint16(head[44:])), word(head, 28, 32)
	if wide {
		size, count = 56, int(order.Uint16(head[56:]))
	}
	header := make([]byte, size)
	for i := range min(count, maxHeaders) {
		off := at + int64(i*size)
		if off < 0 {
			return ""
		}
		if _, err := f.ReadAt(header, off); err != nil {
			return ""
		}
		const interp = 3 // PT_INTERP
		if order.Uint32(header) != interp {
			continue
		}
		from, n := word(header, 4, 8), word(header, 16, 32)
		if from < 0 || n <= 0 || n > unix.PathMax {
			return ""
		}
		text := make([]byte, n)
		if _, err := f.ReadAt(text, from); err != nil {
			return ""
		}
		return string(bytes.TrimRight(text, "\x00"))
	}
	return ""
}

// Command returns the first Fault of the programs that a shell script begins commands with. A status of 126 is that of a shell for
// a command that it cannot execute, 127 for one that it does not find, 2 for a script that it does not understand.
func (x *Finder) Command(script string, status int) *Fault {
	for _, word := range commands(script) {
		if fault := x.Program(word, status); fault != nil {
			return fault
		}
	}
	return nil
}

// Program is Command for one program.
func (x *Finder) Program(name string, status int) *Fault {
	for _, file := range candidates(name, x.Dir, x.Env) {
		shown := name
		if !strings.Contains(name, "/") {
			shown = file
		}
		if fault := x.file(file, shown); fault != nil && (fault.Foreign || status != 2 && fault.NotFound == (status == 127)) {
			return fault
		}
	}
	return nil
}

// candidates are the paths at which a program may be.
func candidates(name, dir string, env []string) []string {
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join(dir, name)
		}
		return []string{name}
	}
	var all []string
	for _, v := range env {
		if list, ok := strings.CutPrefix(v, "PATH="); ok {
			all = nil
			for at := range strings.SplitSeq(list, ":") {
				if path.IsAbs(at) && len(all) < maxCommands {
					all = append(all, path.Join(at, name))
				}
			}
		}
	}
	return all
}

// prefixes are words of the shell, and programs, after which a command begins.
var prefixes = []string{"exec", "time", "env", "nice", "nohup", "command", "if", "then", "else", "elif", "do", "while", "until", "!", "sudo"}

// commands returns the words with which commands begin, as far as that can be told without a shell: what has variables is left out.
func commands(script string) []string {
	var words []string
	for command := range strings.FieldsFuncSeq(script, func(r rune) bool { return strings.ContainsRune(";&|\n(){}`", r) }) {
		if len(words) == maxCommands {
			break
		}
		for word := range strings.FieldsSeq(command) {
			word = strings.Trim(word, `"'`)
			if slices.Contains(prefixes, word) || strings.Contains(word, "=") {
				continue
			}
			if word != "" && !strings.ContainsAny(word, "$*?\\<>\"'\x00") && !slices.Contains(words, word) {
				words = append(words, word)
			}
			break
		}
	}
	return words
}
