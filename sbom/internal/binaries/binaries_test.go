package binaries

import (
	"bytes"
	"compress/zlib"
	"debug/buildinfo"
	"debug/elf"
	"encoding/binary"
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/sbom/internal/found"
	"github.com/kilnbuild/kiln/sbom/internal/found/foundtest"
)

// program returns a program of Linux with one section.
func program(t testing.TB, section string, data []byte) []byte {
	t.Helper()
	names := "\x00" + section + "\x00.shstrtab\x00"
	const header = 64
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: header, Shentsize: 64, Shnum: 3, Shstrndx: 2,
		Shoff: uint64(header + len(data) + len(names)),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var b bytes.Buffer
	write := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	write(h)
	b.Write(data)
	b.WriteString(names)
	write(elf.Section64{})
	write(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: header, Size: uint64(len(data))})
	write(elf.Section64{Name: uint32(len(section) + 2), Type: uint32(elf.SHT_STRTAB), Off: uint64(header + len(data)), Size: uint64(len(names))})
	return b.Bytes()
}

func compressed(t testing.TB, data string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	if _, err := z.Write([]byte(data)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const list = `{"packages":[{"name":"app","version":"0.1.0","source":"local","root":true,"dependencies":[1]},` +
	`{"name":"serde","version":"1.0.1","source":"crates.io"},{"name":"cc","version":"1","source":"crates.io","kind":"build"}]}`

func TestCrates(t *testing.T) {
	for name, c := range map[string]struct{ data, want, bad string }{
		"":      {list, "cargo app@0.1.0\ncargo serde@1.0.1\n", ""},
		"bomb":  {strings.Repeat(" ", maxAudit+1), "", "longer than 8 MiB"},
		"no":    {"{", "", "damaged"},
		"empty": {"{}", "", ""},
	} {
		all, err := Read(foundtest.File("bin/app", program(t, auditSection, compressed(t, c.data))))
		if got := foundtest.Show(all); got != c.want || (err == nil) != (c.bad == "") || err != nil && !strings.Contains(err.Error(), c.bad) {
			t.Errorf("%s: %s%v", name, got, err)
		}
	}
	for _, other := range [][]byte{program(t, ".text", []byte("code")), []byte("\x7fELF"), nil} {
		if all, err := Read(foundtest.File("bin/app", other)); len(all) > 0 || err != nil {
			t.Error(all, err)
		}
	}
	if _, err := Read(foundtest.File("bin/app", program(t, auditSection, []byte("no zlib")))); err == nil {
		t.Error("no error for a section that is damaged")
	}
}

func TestModules(t *testing.T) {
	var all found.Packages
	err := modules(&all, &buildinfo.BuildInfo{
		GoVersion: "go1.26.8",
		Main:      debug.Module{Path: "example.org/app", Version: "(devel)"},
		Deps: []*debug.Module{
			{Path: "golang.org/x/sys", Version: "v0.1.0"},
			{Path: "example.org/a", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/b/v2", Version: "v2.0.0"}},
		},
		Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"},
		},
	})
	want := "golang stdlib@1.26.8\ngolang example.org/app@v0.0.0-20260102030405-0123456789ab\n" +
		"golang golang.org/x/sys@v0.1.0\ngolang example.org/b/v2@v2.0.0\n"
	if got := foundtest.Show(all.All); got != want || err != nil {
		t.Errorf("%s%v", got, err)
	}
	// This test is a program of Go.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	found, err := Read(foundtest.File("bin/test", data))
	if err != nil || !strings.HasPrefix(foundtest.Show(found), "golang stdlib@") {
		t.Error(found, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(program(f, auditSection, compressed(f, list)))
	f.Add(program(f, ".go.buildinfo", []byte("\xff Go buildinf:\x08\x02")))
	foundtest.Fuzz(f, "bin/app", Read)
}
