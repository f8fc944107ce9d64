package values

import (
	"testing"

	"github.com/kilnbuild/kiln/bake/internal/syntax"
	"github.com/zclconf/go-cty/cty"
)

// call calls a standard function; an error is "".
func call(t *testing.T, name string, args ...any) string {
	t.Helper()
	var all []cty.Value
	for _, arg := range args {
		switch arg := arg.(type) {
		case string:
			all = append(all, cty.StringVal(arg))
		case int:
			all = append(all, cty.NumberIntVal(int64(arg)))
		}
	}
	v, err := Functions(syntax.NewMeter(t.Context()))[name].Call(all)
	if err != nil {
		return ""
	}
	switch v.Type() {
	case cty.Bool:
		if v.True() {
			return "true"
		}
		return "false"
	case cty.String:
		return v.AsString()
	}
	return v.GoString()
}

func TestSemver(t *testing.T) {
	for _, tc := range []struct{ version, constraint, want string }{
		{"1.2.3", ">= 1.2", "true"}, {"1.2.3", "< 1.2", "false"}, {"1.2.3", ">=1.2 <1.3", "true"}, {"1.2.3", "<1.2 || >1.2.2", "true"},
		{"1.2.3", "1.2.x", "true"}, {"1.2.3", "*", "true"}, {"1.2.3", "!=1.2", "false"}, {"1.2.3", "1.2 - 1.4.5", "true"}, {"1.5.0", "1.2 - 1.4", "false"},
		{"1.2.3", ">1.2", "false"}, {"1.3.0", ">1.2", "true"}, {"1.2.9", "<=1.2", "true"}, {"1.3.0", "<=1.2", "false"},
		{"1.3.0", "~1.2", "false"}, {"1.3", "~1", "true"}, {"1.2.3", "~>1.2.2", "true"}, {"2.0.0", "^1.2", "false"}, {"0.3.0", "^0.2", "false"},
		{"0.0.4", "^0.0.3", "false"}, {"0.0.9", "^0.0", "true"}, {"0.5.0", "^0", "true"},
		{"1.2.3-beta", ">= 1.2", "false"}, {"1.2.3-beta", ">= 1.2.3-alpha", "true"}, {"1.2.3-rc.10", "> 1.2.3-rc.9", "true"},
		{"1.2.3-rc.1", ">= 1.2.0-0, < 1.3", "true"}, {"v1.2.3+build", "=v1.2.3", "true"},
		{"foo", "1", ""}, {"1.2.3", "foo", ""}, {"1.2.3", "", ""}, {"1.2.3", ">", ""}, {"1.2.3.4", ">1", ""}, {"1.2.3-", ">1", ""},
	} {
		if got := call(t, "semvercmp", tc.version, tc.constraint); got != tc.want {
			t.Errorf("%s satisfies %q: %q, want %q", tc.version, tc.constraint, got, tc.want)
		}
	}
}

func TestFunctions(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []any
		want string
	}{
		{"cidrhost", []any{"10.1.2.3/16", 5}, "10.1.0.5"}, {"cidrhost", []any{"10.0.0.0/16", -5}, "10.0.255.251"}, {"cidrhost", []any{"10.0.0.0/30", 4}, ""},
		{"cidrhost", []any{"fd00::/64", 17}, "fd00::11"}, {"cidrhost", []any{"10.0.0.0", 1}, ""},
		{"cidrnetmask", []any{"10.0.0.0/12"}, "255.240.0.0"}, {"cidrnetmask", []any{"0.0.0.0/0"}, "0.0.0.0"},
		{"cidrsubnet", []any{"10.0.0.0/16", 4, 2}, "10.0.32.0/20"}, {"cidrsubnet", []any{"10.0.0.0/16", 4, 16}, ""}, {"cidrsubnet", []any{"10.0.0.0/16", 20, 0}, ""},
		{"cidrsubnets", []any{"10.1.0.0/16", 8, 4, 4}, `cty.ListVal([]cty.Value{cty.StringVal("10.1.0.0/24"), cty.StringVal("10.1.16.0/20"), cty.StringVal("10.1.32.0/20")})`},
		{"cidrsubnets", []any{"10.0.0.0/16", 1, 1, 1}, ""},
		{"uuidv5", []any{"dns", "example.com"}, "cfbff0d1-9375-5685-968c-48ce8b15ae17"}, {"uuidv5", []any{"x", "y"}, ""},
		{"base64decode", []any{"SGVsbG8="}, "Hello"}, {"base64decode", []any{"/////w=="}, ""}, {"sanitize", []any{"a b/é.c"}, "a_b___c"},
		{"formattimestamp", []any{"X", "2015-10-21T00:00:00Z"}, "1445385600"}, {"formattimestamp", []any{"YYYY-MM-DD", 1690328596}, "2023-07-25"},
		{"formattimestamp", []any{"YYYY", "soon"}, ""}, {"bcrypt", []any{"x", 31}, ""}, {"indent", []any{1000000000, "a"}, ""}, {"format", []any{"%20000d", 1}, ""},
	} {
		if got := call(t, tc.name, tc.args...); got != tc.want {
			t.Errorf("%s(%v) is %q, want %q", tc.name, tc.args, got, tc.want)
		}
	}
}

func TestFromText(t *testing.T) {
	for _, tc := range []struct {
		text string
		ty   cty.Type
		want string
	}{
		{"a,\"b,c\"", cty.List(cty.String), `cty.ListVal([]cty.Value{cty.StringVal("a"), cty.StringVal("b,c")})`},
		{"1,1", cty.Set(cty.Number), `cty.SetVal([]cty.Value{cty.NumberIntVal(1)})`},
		{"1,x", cty.Tuple([]cty.Type{cty.Number, cty.String}), `cty.TupleVal([]cty.Value{cty.NumberIntVal(1), cty.StringVal("x")})`},
		{"a:T", cty.Map(cty.Bool), `cty.MapVal(map[string]cty.Value{"a":cty.True})`},
		{"", cty.List(cty.String), ""}, {"a", cty.Map(cty.String), ""}, {"1", cty.Tuple([]cty.Type{cty.Number, cty.String}), ""},
		{"a", cty.Object(map[string]cty.Type{"a": cty.String}), ""}, {"a", cty.List(cty.List(cty.String)), ""}, {"x", cty.Number, ""}, {"maybe", cty.Bool, ""},
		{"1e300000000", cty.Number, ""}, {`"a`, cty.List(cty.String), ""},
	} {
		v, err := FromText(tc.text, tc.ty)
		got := ""
		if err == nil {
			got = v.GoString()
		}
		if got != tc.want {
			t.Errorf("%q as %s is %s (%v), want %s", tc.text, tc.ty.FriendlyName(), got, err, tc.want)
		}
	}
}
