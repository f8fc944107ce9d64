// Package syntax reads the files of bake definitions, in HCL and JSON, as syntax trees of HCL, and bounds what their expressions may
// become.
package syntax

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// Limits of files and of what their expressions become.
const (
	maxNesting   = 100     // of brackets and templates in each other
	maxOperators = 10000   // of a file, whose expressions may nest as deeply as there are operators
	MaxValue     = 1 << 20 // bytes of a value
	maxMade      = 64 << 20
	maxWork      = 256 << 20 // bytes of values that are looked at
	maxSteps     = 500_000
	maxExponent  = 4096 // of a number, in bits
	maxCalls     = 100  // of functions of the definition that call each other
)

// The types of blocks.
const (
	Variable   = "variable"
	Function   = "function"
	Target     = "target"
	Group      = "group"
	Validation = "validation"
)

// IsBlock reports whether blocks of a type are at the top of files.
func IsBlock(name string) bool {
	return name == Variable || name == Function || name == Target || name == Group
}

// Error is what is wrong at a place of a definition.
type Error struct {
	// File and Line are where it is; Line counts from 1.
	File    string
	Line    int
	Message string
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message) }

// ErrorAt returns an error of a place.
func ErrorAt(at hcl.Range, format string, args ...any) error {
	return &Error{at.Filename, at.Start.Line, fmt.Sprintf(format, args...)}
}

// Failure returns the first error of what HCL says, and how many others there are.
func Failure(diags hcl.Diagnostics) error {
	errs := diags.Errs()
	for _, err := range errs {
		d, ok := err.(*hcl.Diagnostic)
		if !ok || d.Severity != hcl.DiagError {
			continue
		}
		message := strings.TrimSuffix(d.Summary, ".")
		if d.Detail != "" {
			message += ": " + strings.ReplaceAll(d.Detail, "\n", " ")
		}
		message = strings.TrimSuffix(message, ".")
		if n := countErrors(diags) - 1; n == 1 {
			message += " (and another error)"
		} else if n > 1 {
			message += fmt.Sprintf(" (and %d other errors)", n)
		}
		if d.Subject == nil {
			return fmt.Errorf("%s", message)
		}
		return ErrorAt(*d.Subject, "%s", message)
	}
	return diags
}

// countErrors counts the errors with different places and texts: an expression that is evaluated twice fails twice.
func countErrors(diags hcl.Diagnostics) int {
	seen := map[string]bool{}
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			seen[d.Error()] = true
		}
	}
	return len(seen)
}

// Parse returns the body of a file, in HCL or JSON.
func Parse(name string, data []byte, isJSON bool) (*hclsyntax.Body, error) {
	if isJSON {
		return parseJSON(name, data)
	}
	tokens, diags := hclsyntax.LexConfig(data, name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, Failure(diags)
	}
	if err := (&shape{}).check(tokens); err != nil {
		return nil, err
	}
	parsed, diags := hclsyntax.ParseConfig(data, name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, Failure(diags)
	}
	return parsed.Body.(*hclsyntax.Body), nil
}

// shape counts what makes expressions deep: HCL parses and evaluates them by recursion, without a limit of its own.
type shape struct{ operators int }

func (s *shape) check(tokens hclsyntax.Tokens) error {
	depth := 0
	operand := false // whether the last token ends an operand, so that a bracket is an index
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc,
			hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			if depth++; depth > maxNesting {
				return ErrorAt(t.Range, "expressions are nested more deeply than %d", maxNesting)
			}
			if operand && t.Type == hclsyntax.TokenOBrack || t.Type == hclsyntax.TokenTemplateControl {
				s.operators++
			}
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc,
			hclsyntax.TokenTemplateSeqEnd:
			depth--
		case hclsyntax.TokenBang, hclsyntax.TokenMinus, hclsyntax.TokenPlus, hclsyntax.TokenStar, hclsyntax.TokenSlash, hclsyntax.TokenPercent,
			hclsyntax.TokenAnd, hclsyntax.TokenOr, hclsyntax.TokenEqualOp, hclsyntax.TokenNotEqual, hclsyntax.TokenLessThan,
			hclsyntax.TokenLessThanEq, hclsyntax.TokenGreaterThan, hclsyntax.TokenGreaterThanEq, hclsyntax.TokenQuestion:
			s.operators++
		}
		if s.operators > maxOperators {
			return ErrorAt(t.Range, "the file has more than the %d operators that are allowed", maxOperators)
		}
		operand = t.Type == hclsyntax.TokenIdent || t.Type == hclsyntax.TokenCBrack || t.Type == hclsyntax.TokenCParen ||
			t.Type == hclsyntax.TokenStar || t.Type == hclsyntax.TokenCQuote || t.Type == hclsyntax.TokenCBrace
	}
	return nil
}

// CheckLiterals returns an error if an expression has a number that is too large to be written out.
func CheckLiterals(e hclsyntax.Expression) error {
	var err error
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		if l, ok := n.(*hclsyntax.LiteralValueExpr); ok && err == nil && l.Val.Type() == cty.Number && SizeOf(l.Val, MaxValue) > MaxValue {
			err = ErrorAt(l.SrcRange, "the number is too large")
		}
		return nil
	})
	return err
}

// SortedAttributes returns the names of the attributes of a body in their order in the file.
func SortedAttributes(body *hclsyntax.Body) []string {
	return slices.SortedFunc(maps.Keys(body.Attributes), func(a, b string) int {
		return body.Attributes[a].NameRange.Start.Byte - body.Attributes[b].NameRange.Start.Byte
	})
}

// ParseExpression returns an expression whose text is at a place.
func ParseExpression(text string, at hcl.Range) (hclsyntax.Expression, error) {
	tokens, diags := hclsyntax.LexExpression([]byte(text), at.Filename, at.Start)
	if diags.HasErrors() {
		return nil, Failure(diags)
	}
	if err := (&shape{}).check(tokens); err != nil {
		return nil, err
	}
	e, diags := hclsyntax.ParseExpression([]byte(text), at.Filename, at.Start)
	if diags.HasErrors() {
		return nil, Failure(diags)
	}
	return e, nil
}
