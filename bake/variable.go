package bake

import (
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/kilnbuild/kiln/bake/internal/syntax"
	"github.com/kilnbuild/kiln/bake/internal/values"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// Variable is a variable as it is listed.
type Variable struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// Type is that of the attribute type, as "list of string"; "" for none.
	Type string `json:"type,omitempty"`
	// Value is its value; nil for null.
	Value *string `json:"value,omitempty"`
}

// variable is a variable block.
type variable struct {
	name         string
	block        *hclsyntax.Block
	isJSON       bool
	ty           cty.Type // cty.NilType without an attribute type
	done, listed bool
}

func newVariable(name string, b *hclsyntax.Block, isJSON bool) (*variable, error) {
	if err := checkBody(b, []string{"type", "default", "description"}, syntax.Validation); err != nil {
		return nil, err
	}
	for _, check := range b.Body.Blocks {
		if err := checkBody(check, []string{"condition", "error_message"}); err != nil {
			return nil, err
		}
		if check.Body.Attributes["condition"] == nil {
			return nil, syntax.ErrorAt(check.TypeRange, "the validation of the variable %s has no condition", name)
		}
	}
	return &variable{name: name, block: b, isJSON: isJSON, ty: cty.NilType}, nil
}

// typeOf returns the type of an attribute type, which is written as an expression, and in JSON as a string that has one.
func (v *variable) typeOf(a *hclsyntax.Attribute) (cty.Type, error) {
	tree := a.Expr
	if t, ok := tree.(*hclsyntax.TemplateExpr); ok && v.isJSON && t.IsStringLiteral() {
		text, diags := t.Value(nil)
		if diags.HasErrors() {
			return cty.NilType, syntax.Failure(diags)
		}
		var err error
		if tree, err = syntax.ParseExpression(text.AsString(), t.Range()); err != nil {
			return cty.NilType, err
		}
	}
	ty, diags := typeexpr.TypeConstraint(tree)
	if diags.HasErrors() {
		return cty.NilType, syntax.Failure(diags)
	}
	return ty, nil
}

// lookup returns the value that --var or the environment has for a variable.
func (e *evaluator) lookup(name string) (string, bool) {
	if value, ok := e.options.Vars[name]; ok {
		return value, true
	}
	if disabled, _ := e.options.Env("BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP"); disabled == "1" || disabled == "true" {
		return "", false
	}
	return e.options.Env(name)
}

// variable returns the value of a variable: that of the command line or the environment, or its default.
func (e *evaluator) variable(v *variable) (cty.Value, error) {
	at := v.block.LabelRanges[0]
	value := cty.StringVal("") // a variable with neither a type nor a default is an empty string
	attributes := v.block.Body.Attributes
	if a := attributes["type"]; a != nil {
		var err error
		if v.ty, err = v.typeOf(a); err != nil {
			return cty.NilVal, err
		}
		value = cty.NullVal(v.ty)
	}
	if a := attributes["default"]; a != nil {
		var err error
		if value, err = e.value(a.Expr); err != nil {
			return cty.NilVal, err
		}
		if v.ty != cty.NilType {
			if value, err = convert.Convert(value, v.ty); err != nil {
				return cty.NilVal, syntax.ErrorAt(a.Expr.Range(), "the default of the variable %s is not a %s: %v",
					v.name, v.ty.FriendlyName(), err)
			}
		}
	}
	text, ok := "", false
	if e.variables[v.name+values.JSONSuffix] == nil {
		text, ok = e.lookup(v.name + values.JSONSuffix)
	}
	if ok && v.ty != cty.NilType {
		parsed, err := values.FromJSON(text, v.ty)
		if err != nil {
			return cty.NilVal, syntax.ErrorAt(at, "the value of %s is not a %s in JSON: %v", v.name+values.JSONSuffix, v.ty.FriendlyName(), err)
		}
		return parsed, nil
	}
	if !ok { // the JSON of a variable without a type is taken as text
		text, ok = e.lookup(v.name)
	}
	if !ok {
		return value, nil
	}
	ty := v.ty
	if ty == cty.NilType {
		if ty = value.Type(); ty == cty.DynamicPseudoType {
			ty = cty.String // its default is null
		}
	}
	parsed, err := values.FromText(text, ty)
	if err != nil {
		return cty.NilVal, syntax.ErrorAt(at, "the value %q of the variable %s: %v", text, v.name, err)
	}
	if syntax.SizeOf(parsed, syntax.MaxValue) > syntax.MaxValue {
		return cty.NilVal, syntax.ErrorAt(at, "the value of the variable %s is larger than the %d MiB that are allowed",
			v.name, syntax.MaxValue>>20)
	}
	return parsed, nil
}

// validate evaluates the conditions of a variable.
func (e *evaluator) validate(v *variable) error {
	for _, check := range v.block.Body.Blocks {
		condition := check.Body.Attributes["condition"].Expr
		ok, err := e.value(condition)
		if err != nil {
			return err
		}
		if ok, err = convert.Convert(ok, cty.Bool); err != nil || ok.IsNull() {
			return syntax.ErrorAt(condition.Range(), "the condition of a validation of the variable %s is neither true nor false", v.name)
		}
		if ok.True() {
			continue
		}
		message := "a validation failed"
		if a := check.Body.Attributes["error_message"]; a != nil {
			text, err := e.value(a.Expr)
			if err != nil {
				return err
			}
			if text, err = convert.Convert(text, cty.String); err == nil && !text.IsNull() {
				message = text.AsString()
			}
		}
		return syntax.ErrorAt(condition.Range(), "the variable %s is invalid: %s", v.name, message)
	}
	return nil
}

// listed returns what is listed of a variable.
func (e *evaluator) listed(v *variable) (Variable, error) {
	out := Variable{Name: v.name}
	if v.ty != cty.NilType {
		out.Type = v.ty.FriendlyName()
	}
	if a := v.block.Body.Attributes["description"]; a != nil {
		text, err := e.value(a.Expr)
		if err == nil {
			text, err = convert.Convert(text, cty.String)
		}
		if err != nil {
			return out, err
		}
		if !text.IsNull() {
			out.Description = text.AsString()
		}
	}
	value := e.scope.Variables[v.name]
	if value.IsNull() {
		return out, nil
	}
	text, err := convert.Convert(value, cty.String)
	if err == nil {
		out.Value = new(text.AsString())
		return out, nil
	}
	data, err := ctyjson.Marshal(value, value.Type())
	if err != nil {
		return out, err
	}
	out.Value = new(string(data))
	return out, nil
}
