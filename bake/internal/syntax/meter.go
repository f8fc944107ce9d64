package syntax

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// Meter bounds what the expressions of a definition may become together. It is told of every value that an expression makes, so that a
// value is refused before it is a part of larger ones. Once a limit is exceeded nothing more is evaluated.
type Meter struct {
	ctx               context.Context
	steps, made, work int64
	calls             int // of functions of the definition that call each other
	err               error
}

// NewMeter returns a Meter of an evaluation that ends when ctx does.
func NewMeter(ctx context.Context) *Meter { return &Meter{ctx: ctx} }

// Err returns the error of a limit that was exceeded, or of the context.
func (m *Meter) Err() error { return m.err }

// Enter counts the call of a function of the definition, which ends with Leave.
func (m *Meter) Enter(at hcl.Range) {
	if m.calls++; m.calls > maxCalls {
		m.over(at, "functions call each other more deeply than %d", maxCalls)
	}
}

// Leave ends a call.
func (m *Meter) Leave() { m.calls-- }

// Spend counts work of a function that its result does not show, as the bytes of values that it could look at in the same time.
func (m *Meter) Spend(work int64) error {
	if m.work += work; m.work > maxWork && m.err == nil {
		m.err = errors.New("the functions that the definition calls take too long together")
	}
	if err := m.ctx.Err(); err != nil && m.err == nil {
		m.err = err
	}
	return m.err
}

// over is the end of the evaluation, with the place where it was.
func (m *Meter) over(at hcl.Range, format string, args ...any) {
	if m.err == nil {
		m.err = ErrorAt(at, format, args...)
	}
}

// step counts an evaluation. It returns false once nothing may be evaluated any more.
func (m *Meter) step(at hcl.Range) bool {
	if m.steps++; m.steps > maxSteps {
		m.over(at, "the definition takes more than the %d steps of evaluation that are allowed", maxSteps)
	}
	if err := m.ctx.Err(); err != nil && m.err == nil {
		m.err = err
	}
	return m.err == nil
}

// add counts a value, which is a new one or only looked at.
func (m *Meter) add(v cty.Value, isNew bool, at hcl.Range) {
	size := SizeOf(v, MaxValue)
	if size > MaxValue {
		m.over(at, "the value is larger than the %d MiB that are allowed", MaxValue>>20)
	}
	m.work += size
	if isNew {
		m.made += size
	}
	if m.made > maxMade || m.work > maxWork {
		m.over(at, "the values of the definition are together larger than the %d MiB that are allowed", maxMade>>20)
	}
}

// ElementSize is what an element of a collection counts besides its contents.
const ElementSize = 64

// SizeOf returns the number of bytes that a value takes if it is written out, more or less; any number above limit if it is larger.
func SizeOf(v cty.Value, limit int64) int64 {
	size := int64(ElementSize)
	if !v.IsKnown() || v.IsNull() {
		return size
	}
	ty := v.Type()
	switch {
	case ty == cty.String:
		return size + int64(len(v.AsString()))
	case ty == cty.Number:
		f := v.AsBigFloat()
		if exponent := f.MantExp(nil); exponent > maxExponent || exponent < -maxExponent || f.MinPrec() > maxExponent {
			return limit + 1
		}
	case v.CanIterateElements():
		for it := v.ElementIterator(); size <= limit && it.Next(); {
			key, element := it.Element()
			if key.Type() == cty.String && !ty.IsSetType() {
				size += int64(len(key.AsString()))
			}
			size += SizeOf(element, limit-size)
		}
	}
	return size
}

// metered is an expression of which a meter is told. It takes the place of the expression in the syntax tree.
type metered struct {
	hclsyntax.Expression
	meter *Meter
	// makes says that the value is a new one, not one that a variable or another expression has.
	makes bool
}

// Value implements hcl.Expression.
func (e *metered) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	if !e.meter.step(e.Range()) {
		return cty.DynamicVal, e.exceeded()
	}
	v, diags := e.Expression.Value(ctx)
	if e.meter.err == nil && !diags.HasErrors() {
		e.meter.add(v, e.makes, e.Range())
	}
	if e.meter.err != nil {
		return cty.DynamicVal, e.exceeded()
	}
	return v, diags
}

func (e *metered) exceeded() hcl.Diagnostics {
	at := e.Range()
	return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "A limit is exceeded", Detail: fmt.Sprint(e.meter.err), Subject: &at}}
}

// UnwrapExpression lets HCL see the expression, where it reads one instead of evaluating it.
func (e *metered) UnwrapExpression() hcl.Expression { return e.Expression }

// Wrap returns an expression of which the meter is told, and of all expressions in it. What depends on the types of expressions, such as
// the variables they refer to, has to be asked before.
func (m *Meter) Wrap(e hclsyntax.Expression) hclsyntax.Expression {
	makes := false
	switch e := e.(type) {
	case nil:
		return nil
	case *hclsyntax.LiteralValueExpr, *hclsyntax.AnonSymbolExpr, *metered:
		return e
	case *hclsyntax.ObjectConsKeyExpr:
		if _, ok := e.Wrapped.(*hclsyntax.ScopeTraversalExpr); !ok || e.ForceNonLiteral { // HCL looks whether it is a bare name
			e.Wrapped = m.Wrap(e.Wrapped)
		}
		return e
	case *hclsyntax.TemplateExpr:
		makes = true
		m.wrapAll(e.Parts)
	case *hclsyntax.TemplateJoinExpr:
		makes = true
		e.Tuple = m.Wrap(e.Tuple)
	case *hclsyntax.TemplateWrapExpr:
		e.Wrapped = m.Wrap(e.Wrapped)
	case *hclsyntax.ParenthesesExpr:
		e.Expression = m.Wrap(e.Expression)
	case *hclsyntax.FunctionCallExpr:
		makes = true
		m.wrapAll(e.Args)
	case *hclsyntax.TupleConsExpr:
		makes = true
		m.wrapAll(e.Exprs)
	case *hclsyntax.ObjectConsExpr:
		makes = true
		for i, item := range e.Items {
			e.Items[i] = hclsyntax.ObjectConsItem{KeyExpr: m.Wrap(item.KeyExpr), ValueExpr: m.Wrap(item.ValueExpr)}
		}
	case *hclsyntax.ForExpr:
		makes = true
		e.CollExpr, e.KeyExpr, e.ValExpr, e.CondExpr = m.Wrap(e.CollExpr), m.Wrap(e.KeyExpr), m.Wrap(e.ValExpr), m.Wrap(e.CondExpr)
	case *hclsyntax.SplatExpr:
		makes = true
		e.Source, e.Each = m.Wrap(e.Source), m.Wrap(e.Each)
	case *hclsyntax.ConditionalExpr:
		e.Condition, e.TrueResult, e.FalseResult = m.Wrap(e.Condition), m.Wrap(e.TrueResult), m.Wrap(e.FalseResult)
	case *hclsyntax.BinaryOpExpr:
		e.LHS, e.RHS = m.Wrap(e.LHS), m.Wrap(e.RHS)
	case *hclsyntax.UnaryOpExpr:
		e.Val = m.Wrap(e.Val)
	case *hclsyntax.IndexExpr:
		e.Collection, e.Key = m.Wrap(e.Collection), m.Wrap(e.Key)
	case *hclsyntax.RelativeTraversalExpr:
		e.Source = m.Wrap(e.Source)
	}
	return &metered{e, m, makes}
}

func (m *Meter) wrapAll(all []hclsyntax.Expression) {
	for i, e := range all {
		all[i] = m.Wrap(e)
	}
}
