package table

import (
	"errors"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/input"
)

var columns = []Column{{"ID", "IMAGE ID"}, {"Name", "NAME"}, {"Size", "SIZE"}}

func TestPrint(t *testing.T) {
	rows := []Row{{"ID": "1", "Name": "a", "Size": "10MB"}, {"ID": "22", "Name": "a\x1b[2Jb\nc", "Size": "9B"}}
	for format, want := range map[string]string{
		"":                             "NAME      SIZE\na         10MB\n",
		"table {{.ID}}\\t{{.Name}}":    "IMAGE ID   NAME\n1          a\n",
		"table {{upper .Name}}\t{{1}}": "NAME      1\nA         1\n",
		"{{.ID}}={{.Size}}\\n":         "1=10MB\n\n22=9B\n\n",
		"json":                         `{"ID":"1","Name":"a","Size":"10MB"}` + "\n",
	} {
		p, err := New(format, columns, "Name", "Size")
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		var out strings.Builder
		if err := p.Print(&out, rows); err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("%s: %v, %q", format, err, out.String())
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Errorf("%s printed %q", format, out.String())
		}
	}
}

// TestWrong shows that a format that is wrong is so without any row.
func TestWrong(t *testing.T) {
	for format, want := range map[string]string{
		"{{.Nmae}}":           "there is no field .Nmae; there are .ID, .Name, .Size",
		"table {{.ID}}{{.X}}": "there is no field .X",
		"{{.ID":               "--format: ",
		"{{.ID.X}}":           "--format: ",
	} {
		_, err := New(format, columns, "ID")
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, new(*input.Error)) {
			t.Errorf("%s: %v", format, err)
		}
	}
}

func TestValues(t *testing.T) {
	type value struct {
		ID     string `json:"Id"`
		User   string `json:",omitempty"`
		Labels map[string]string
	}
	values := []any{value{ID: "x", Labels: map[string]string{"a": "b"}}}
	for format, want := range map[string]string{
		"{{.ID}} {{.Id}}": "", "{{.ID}}": "x\n", "{{.Id}}": "x\n", "[{{.User}}]": "[]\n", "{{.Labels.a}}": "b\n", "json": `{"Id":"x","Labels":{"a":"b"}}` + "\n",
		"{{.Nothing}}": "",
	} {
		var out strings.Builder
		err := Values(&out, format, values)
		if out.String() != want || (err == nil) != (want != "") || err != nil && !errors.As(err, new(*input.Error)) {
			t.Errorf("%s: %q, %v", format, out.String(), err)
		}
	}
}
