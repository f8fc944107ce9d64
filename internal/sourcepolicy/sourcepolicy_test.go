package sourcepolicy

import (
	"maps"
	"strings"
	"testing"
)

func TestEvaluate(t *testing.T) {
	const image = "docker-image://docker.io/library/alpine:3"
	for _, test := range []struct {
		name, policy string
		source       Source
		want         Source
		err          string
	}{
		{
			name:   "what no rule matches is allowed",
			policy: `{"version":1,"rules":[{"action":"DENY","selector":{"identifier":"docker-image://docker.io/library/debian*"}}]}`,
			source: Source{Identifier: image}, want: Source{Identifier: image},
		},
		{
			name: "the last rule that matches decides",
			policy: `{"rules":[{"action":"DENY","selector":{"identifier":"*"}},
				{"selector":{"identifier":"docker-image://docker.io/library/*"}}]}`,
			source: Source{Identifier: image}, want: Source{Identifier: image},
		},
		{
			name: "a conversion begins again with the first rule",
			policy: `{"rules":[{"action":"DENY","selector":{"identifier":"docker-image://mirror/*"}},
				{"action":"CONVERT","selector":{"identifier":"docker-image://docker.io/*"},"updates":{"identifier":"docker-image://mirror/$1"}}]}`,
			source: Source{Identifier: image},
			err:    "the source policy p.json forbids docker-image://mirror/library/alpine:3 (rule 1)",
		},
		{
			name: "attributes alone leave the identifier as it is, whatever the selector looks like",
			policy: `{"rules":[{"action":"CONVERT","selector":{"identifier":"https://h/*"},
				"updates":{"attrs":{"http.checksum":"sha256:00"}}}]}`,
			source: Source{Identifier: "https://h/x"},
			want:   Source{"https://h/x", map[string]string{"http.checksum": "sha256:00"}},
		},
		{
			name: "actions and match types by number, matchType in the spelling of protocol buffers",
			policy: `{"rules":[{"action":2,"selector":{"identifier":"^(.*):3$","matchType":2},"updates":{"identifier":"$1:4"}},
				{"action":1,"selector":{"identifier":"docker-image://*","matchType":"EXACT"}}]}`,
			source: Source{Identifier: image}, want: Source{Identifier: "docker-image://docker.io/library/alpine:4"},
		},
		{
			name: "a circle",
			policy: `{"rules":[{"action":"CONVERT","selector":{"identifier":"docker-image://a"},"updates":{"identifier":"docker-image://b"}},
				{"action":"CONVERT","selector":{"identifier":"docker-image://b"},"updates":{"identifier":"docker-image://a"}}]}`,
			source: Source{Identifier: "docker-image://a"},
			err:    "source policy p.json: rule 1: docker-image://b: rules change it over and over",
		},
		{
			name: "an identifier that grows",
			policy: `{"rules":[{"action":"CONVERT","selector":{"identifier":"a","match_type":"REGEX"},
				"updates":{"identifier":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}}]}`,
			source: Source{Identifier: image},
			err:    "what it becomes is longer than 8192 bytes",
		},
	} {
		p, err := Parse("p.json", []byte(test.policy))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got, _, err := p.Evaluate(test.source)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: error %v, want %s", test.name, err, test.err)
			}
			continue
		}
		if err != nil || got.Identifier != test.want.Identifier || !maps.Equal(got.Attrs, test.want.Attrs) {
			t.Errorf("%s: %v, %v, want %v", test.name, got, err, test.want)
		}
	}
}

// none is a policy that is not there.
func TestNone(t *testing.T) {
	var none *Policy
	if got, _, err := none.Evaluate(Source{Identifier: "x"}); err != nil || got.Identifier != "x" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestParseErrors(t *testing.T) {
	rule := func(s string) string { return `{"rules":[{"selector":{"identifier":"x"}},` + s + `]}` }
	for in, want := range map[string]string{
		"":                                      "p.json: it is not JSON: it ends too early",
		"rules:\n- a":                           "p.json:1: it is not JSON: invalid character 'r'",
		"{\n\"rules\":\n[{},]\n":                "p.json:3: it is not JSON: invalid character ']'",
		"{} {}":                                 "there is more behind the end",
		`[]`:                                    "it cannot be a JSON array",
		`{"rule":[]}`:                           `unknown field "rule"`,
		`{"version":2}`:                         "it has version 2, and this kiln knows version 1",
		rule("null"):                            "p.json: rule 2: it is null",
		rule("{}"):                              "p.json: rule 2: it has no selector",
		rule(`{"action":"WARN","selector":{}}`): `rule 2: unknown action "WARN": there are ALLOW, DENY, CONVERT`,
		rule(`{"action":3,"selector":{}}`):      `rule 2: unknown action "3"`,
		rule(`{"action":true,"selector":{}}`):   "true is neither a name nor a number",
		rule(`{"action":"CONVERT","selector":{}}`):                                         "rule 2: it converts, and has no updates",
		rule(`{"selector":{"identifier":"a**"}}`):                                          "two stars in a row",
		rule(`{"selector":{"identifier":"(","match_type":"REGEX"}}`):                       `the expression "(" cannot be used`,
		rule(`{"selector":{"match_type":"GLOB"}}`):                                         `unknown match type "GLOB"`,
		rule(`{"selector":{"constraints":[null]}}`):                                        "one of its constraints is null",
		rule(`{"selector":{"constraints":[{"condition":"LIKE"}]}}`):                        `unknown condition "LIKE"`,
		rule(`{"selector":{"constraints":[{"value":"(","condition":"MATCHES"}]}}`):         `the expression "(" cannot be used`,
		rule(`{"selector":{"identifier":1}}`):                                              "selector.identifier cannot be a JSON number",
		rule(`{"selector":{"identifier":"x"},"update":{}}`):                                `unknown field "update"`,
		`{"rules":[` + strings.Repeat(`{"selector":{}},`, maxRules) + `{"selector":{}}]}`:  "more than 10000 rules",
		`{"rules":[{"selector":{"identifier":"` + strings.Repeat("x", maxSize) + `"}}]}`:   "larger than 1048576 bytes",
		rule(`{"selector":{"identifier":"` + strings.Repeat("x", maxIdentifier+1) + `"}}`): "longer than 8192 bytes",
	} {
		if _, err := Parse("p.json", []byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.80q): error %v, want %s", in, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":1,"rules":[{"action":"CONVERT",
		"selector":{"identifier":"a*","constraints":[{"key":"k","value":"v","condition":"MATCHES"}]},
		"updates":{"identifier":"b$1","attrs":{"k":"v"}}}]}`), "a1")
	f.Add([]byte(`{"rules":[{"action":1,"selector":{"identifier":"(.*)","match_type":"REGEX"}}]}`), "x")
	f.Fuzz(func(t *testing.T, data []byte, identifier string) {
		p, err := Parse("p.json", data)
		if err != nil {
			return
		}
		got, _, err := p.Evaluate(Source{Identifier: identifier})
		if err == nil && identifier != "" && (got.Identifier == "" || len(got.Identifier) > max(maxIdentifier, len(identifier))) {
			t.Errorf("%q becomes %q", identifier, got.Identifier)
		}
	})
}
