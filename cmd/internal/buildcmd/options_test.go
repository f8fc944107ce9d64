package buildcmd

import (
	"reflect"
	"testing"

	"github.com/kilnbuild/kiln/build"
)

func TestOptions(t *testing.T) {
	f := buildFlags{
		run: runFlags{network: "host"}, caching: cachingFlags{offFor: []string{"a, b", "c"}}, call: callFlags{call: "check"},
		target: targetFlags{labels: []string{"a", "b=c=d"}},
	}
	o, err := f.options(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if o.Call != build.CallCheck || !reflect.DeepEqual(o.Client.Allow, []string{"network.host"}) || !reflect.DeepEqual(o.Cache.OffFor, []string{"a", "b", "c"}) ||
		!reflect.DeepEqual(o.Target.Labels, map[string]string{"a": "", "b": "c=d"}) {
		t.Errorf("%+v", o)
	}
}
