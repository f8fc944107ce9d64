package sourcepolicy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/sourcepolicy"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
)

// buildkit evaluates a policy as BuildKit does.
func buildkit(t *testing.T, policy string, s Source) (Source, error) {
	t.Helper()
	var p spb.Policy
	if err := json.Unmarshal([]byte(policy), &p); err != nil {
		t.Fatalf("BuildKit does not read %s: %v", policy, err)
	}
	op := &pb.SourceOp{Identifier: s.Identifier, Attrs: maps.Clone(s.Attrs)}
	_, err := sourcepolicy.NewEngine([]*spb.Policy{&p}).Evaluate(t.Context(), op)
	return Source{op.Identifier, op.Attrs}, err
}

// TestAgainstBuildKit evaluates policies made of a few rules, which often match and change each other's sources, in both ways. No
// expression matches twice in an identifier: each conversion would replace both, and BuildKit has no limit of what they grow to.
func TestAgainstBuildKit(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	of := func(words ...string) string { return words[random.IntN(len(words))] }
	rule := func() string {
		match := of("WILDCARD", "EXACT", "REGEX", "")
		from := of("docker-image://r.io/a:1", "docker-image://r.io/b:1", "docker-image://r.io/*", "docker-image://*:1", "*",
			"docker-image://r.io/a:*", "https://r.io/*/x")
		if match == "REGEX" {
			from = of("^docker-image://r.io/(.*):1$", "^docker-image://([a-z.]*)/(.*)$", "^.*$", "[ab]:(1)$", "^https?://(.*)$")
		}
		to := of("docker-image://r.io/a:1", "docker-image://r.io/b:1", "docker-image://r.io/$1", "docker-image://m.io/${1}:2", "$2x",
			"docker-image://r.io/a$3")
		attrs := of("", "", `,"attrs":{"http.checksum":"sha256:00"}`, `,"attrs":{"k":"v"}`)
		constraints := of("", "", `,"constraints":[{"key":"k","value":"v"}]`, `,"constraints":[{"key":"k","value":"v","condition":"NOTEQUAL"}]`,
			`,"constraints":[{"key":"http.checksum","value":"^sha","condition":"MATCHES"}]`)
		if match != "" {
			match = fmt.Sprintf(`,"match_type":%q`, match)
		}
		selector := fmt.Sprintf(`{"identifier":%q%s%s}`, from, match, constraints)
		if action := of("ALLOW", "DENY", "CONVERT", "CONVERT"); action != "CONVERT" {
			return fmt.Sprintf(`{"action":%q,"selector":%s}`, action, selector)
		}
		return fmt.Sprintf(`{"action":"CONVERT","selector":%s,"updates":{"identifier":%q%s}}`, selector, to, attrs)
	}
	changed, denied, circles := 0, 0, 0
	for range 5000 {
		policy := `{"rules":[` + rule()
		for range random.IntN(4) {
			policy += "," + rule()
		}
		policy += "]}"
		source := Source{Identifier: of("docker-image://r.io/a:1", "docker-image://r.io/b:1", "docker-image://m.io/a:2", "https://r.io/a/x")}
		if random.IntN(3) == 0 {
			source.Attrs = map[string]string{"k": of("v", "w")}
		}
		p, err := Parse("policy.json", []byte(policy))
		if err != nil {
			t.Fatalf("%s: %v", policy, err)
		}
		got, _, err := p.Evaluate(source)
		want, wantErr := buildkit(t, policy, source)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("%s\nof %v: %v, and BuildKit says %v", policy, source, err, wantErr)
		}
		if failed, ok := errors.AsType[*RuleError](err); ok {
			if failed.Denied != errors.Is(wantErr, sourcepolicy.ErrSourceDenied) {
				t.Fatalf("%s\nof %v: %v, and BuildKit says %v", policy, source, err, wantErr)
			}
			if failed.Denied {
				denied++
			} else {
				circles++
			}
			continue
		}
		if got.Identifier != want.Identifier || !maps.Equal(got.Attrs, want.Attrs) {
			t.Fatalf("%s\nof %v: %v, and BuildKit makes %v of it", policy, source, got, want)
		}
		if got.Identifier != source.Identifier {
			changed++
		}
	}
	if changed < 100 || denied < 100 || circles < 100 {
		t.Errorf("of the policies %d changed a source, %d forbade it and %d went in circles: too few to be a test", changed, denied, circles)
	}
}
