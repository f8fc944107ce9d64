package bake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/kilnbuild/kiln/bake/internal/syntax"
	"github.com/kilnbuild/kiln/bake/internal/values"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// evaluator evaluates the blocks of all files as one definition. Whatever an expression refers to is evaluated first, wherever it is.
type evaluator struct {
	options *Options
	meter   *syntax.Meter
	// scope has what is evaluated: variables and functions.
	scope     *hcl.EvalContext
	constants map[string]*constant
	variables map[string]*variable
	functions map[string]*userFunction
	blocks    []*hclsyntax.Block // of targets and groups
	// order has the names of variables and constants in the order of the files.
	order []string
	// instances are the blocks of targets and groups by type and name; of several with one name the last one.
	instances map[string]map[string]*instance
	prepared  map[hclsyntax.Expression]*expression
	// open are the things that are being evaluated, each for the one before it.
	open []string
}

// constant is an attribute of a file outside all blocks, which is a variable that nothing overrides.
type constant struct {
	attribute *hclsyntax.Attribute
	done      bool
}

// userFunction is a function block.
type userFunction struct {
	name     string
	block    *hclsyntax.Block
	params   []string
	variadic string
	done     bool
}

// expression is an expression with what it refers to.
type expression struct {
	tree  hclsyntax.Expression
	refs  []hcl.Traversal
	calls []string
}

func newEvaluator(ctx context.Context, o *Options) *evaluator {
	m := syntax.NewMeter(ctx)
	return &evaluator{
		options: o, meter: m,
		scope: &hcl.EvalContext{
			Variables: map[string]cty.Value{"BAKE_CMD_CONTEXT": cty.StringVal(localPrefix), "BAKE_LOCAL_PLATFORM": cty.StringVal(o.Platform)},
			Functions: values.Functions(m),
		},
		constants: map[string]*constant{}, variables: map[string]*variable{}, functions: map[string]*userFunction{},
		instances: map[string]map[string]*instance{syntax.Target: {}, syntax.Group: {}},
		prepared:  map[hclsyntax.Expression]*expression{},
	}
}

// add adds the blocks of a file.
func (e *evaluator) add(f *file) error {
	body, err := syntax.Parse(f.name, f.data, f.format == formatJSON)
	if err != nil {
		return err
	}
	for _, name := range syntax.SortedAttributes(body) {
		e.constants[name] = &constant{attribute: body.Attributes[name]}
		e.order = append(e.order, name)
	}
	for _, b := range body.Blocks {
		if err := e.addBlock(b, f.format == formatJSON); err != nil {
			return err
		}
	}
	return nil
}

func (e *evaluator) addBlock(b *hclsyntax.Block, isJSON bool) error {
	if !syntax.IsBlock(b.Type) {
		types := []string{syntax.Variable, syntax.Function, syntax.Target, syntax.Group}
		return syntax.ErrorAt(b.TypeRange, "there are no blocks of type %s%s", b.Type, similar(b.Type, types))
	}
	name, err := label(b)
	if err != nil {
		return err
	}
	switch b.Type {
	case syntax.Variable:
		v, err := newVariable(name, b, isJSON)
		if err != nil {
			return err
		}
		if e.variables[name] == nil {
			e.order = append(e.order, name)
		}
		e.variables[name] = v
		return nil
	case syntax.Function:
		f, err := newFunction(name, b)
		if err != nil {
			return err
		}
		e.functions[name] = f
		return nil
	}
	if err := checkName(name, b.LabelRanges[0]); err != nil {
		return err
	}
	e.blocks = append(e.blocks, b)
	return checkBody(b, attributesOf(b.Type))
}

// evaluate adds what the blocks say to a definition.
func (e *evaluator) evaluate(d *Definition) error {
	if err := e.globals(d); err != nil {
		return err
	}
	var all []*instance
	named := map[string][]string{} // names of the targets of the blocks of a name, if one has a matrix
	for _, b := range e.blocks {
		if b.Type == syntax.Target && named[b.Labels[0]] == nil && b.Body.Attributes["matrix"] != nil {
			named[b.Labels[0]] = []string{}
		}
	}
	for _, b := range e.blocks {
		is, err := e.expand(b)
		if err != nil {
			return err
		}
		if all = append(all, is...); len(all) > maxTargets {
			return syntax.ErrorAt(b.TypeRange, "there are more than %d targets and groups", maxTargets)
		}
		for _, i := range is {
			e.instances[b.Type][i.name] = i
			if names := named[b.Labels[0]]; b.Type == syntax.Target && names != nil && !slices.Contains(names, i.name) {
				named[b.Labels[0]] = append(names, i.name)
			}
		}
	}
	for name, targets := range named {
		if len(targets) > 0 && (len(targets) != 1 || targets[0] != name) {
			d.groups[name] = &Group{Name: name, Targets: targets}
		}
	}
	for _, i := range all {
		if err := e.all(i); err != nil {
			return err
		}
		if i.group != nil {
			d.groups[i.name] = i.group
			continue
		}
		if err := d.addTarget(i.target); err != nil {
			return err
		}
	}
	return nil
}

// globals evaluates variables, constants and functions.
func (e *evaluator) globals(d *Definition) error {
	for _, name := range e.order {
		if err := e.global(name); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.functions)) {
		if err := e.function(name); err != nil {
			return err
		}
	}
	for _, name := range e.order {
		v := e.variables[name]
		if v == nil || v.listed {
			continue
		}
		v.listed = true
		if err := e.validate(v); err != nil {
			return err
		}
		listed, err := e.listed(v)
		if err != nil {
			return err
		}
		d.Variables = append(d.Variables, listed)
	}
	return nil
}

// enter begins the evaluation of something that may not be evaluated for itself.
func (e *evaluator) enter(what string, at hcl.Range) error {
	if i := slices.Index(e.open, what); i >= 0 {
		return syntax.ErrorAt(at, "%s refers to itself, in a cycle: %s", what, strings.Join(append(slices.Clone(e.open[i:]), what), ", "))
	}
	if len(e.open) >= maxDepth {
		return syntax.ErrorAt(at, "%s: variables, functions and attributes refer to each other more deeply than %d", what, maxDepth)
	}
	e.open = append(e.open, what)
	return nil
}

func (e *evaluator) leave() { e.open = e.open[:len(e.open)-1] }

// global evaluates a variable or a constant. Of both with the same name the constant wins, as with buildx.
func (e *evaluator) global(name string) error {
	c, v := e.constants[name], e.variables[name]
	switch {
	case c != nil && !c.done:
		if err := e.enter("the variable "+name, c.attribute.NameRange); err != nil {
			return err
		}
		defer e.leave()
		value, err := e.value(c.attribute.Expr)
		if err != nil {
			return err
		}
		c.done = true
		e.scope.Variables[name] = value
	case c == nil && v != nil && !v.done:
		if err := e.enter("the variable "+name, v.block.TypeRange); err != nil {
			return err
		}
		defer e.leave()
		value, err := e.variable(v)
		if err != nil {
			return err
		}
		v.done = true
		e.scope.Variables[name] = value
	}
	return nil
}

// prepare returns an expression with what it refers to, which is seen only before it is metered.
func (e *evaluator) prepare(tree hclsyntax.Expression) (*expression, error) {
	if p := e.prepared[tree]; p != nil {
		return p, nil
	}
	if err := syntax.CheckLiterals(tree); err != nil {
		return nil, err
	}
	p := &expression{refs: tree.Variables()}
	_ = hclsyntax.VisitAll(tree, func(n hclsyntax.Node) hcl.Diagnostics { // it has no error of its own
		if call, ok := n.(*hclsyntax.FunctionCallExpr); ok {
			p.calls = append(p.calls, call.Name)
		}
		return nil
	})
	p.tree = e.meter.Wrap(tree)
	e.prepared[tree] = p
	return p, nil
}

// needs evaluates the variables and functions that an expression refers to, except for those that local has.
func (e *evaluator) needs(p *expression, local func(name string) bool) error {
	for _, name := range p.calls {
		if err := e.function(name); err != nil {
			return err
		}
	}
	for _, ref := range p.refs {
		if name := ref.RootName(); local == nil || !local(name) {
			if err := e.global(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// value evaluates an expression that refers to no targets.
func (e *evaluator) value(tree hclsyntax.Expression) (cty.Value, error) {
	p, err := e.prepare(tree)
	if err != nil {
		return cty.NilVal, err
	}
	if err := e.needs(p, nil); err != nil {
		return cty.NilVal, err
	}
	return e.evaluateIn(p, e.scope)
}

func (e *evaluator) evaluateIn(p *expression, scope *hcl.EvalContext) (cty.Value, error) {
	v, diags := p.tree.Value(scope)
	if err := e.meter.Err(); err != nil {
		return cty.NilVal, err
	}
	if diags.HasErrors() {
		return cty.NilVal, syntax.Failure(diags)
	}
	return v, nil
}

// newFunction reads a function block.
func newFunction(name string, b *hclsyntax.Block) (*userFunction, error) {
	f := &userFunction{name: name, block: b}
	if err := checkBody(b, []string{"params", "variadic_params", "result"}); err != nil {
		return nil, err
	}
	params, result := b.Body.Attributes["params"], b.Body.Attributes["result"]
	if params == nil || result == nil {
		return nil, syntax.ErrorAt(b.TypeRange, "the function %s has no params or no result: "+
			"write params = [] for a function without parameters", name)
	}
	list, diags := hcl.ExprList(params.Expr)
	if diags.HasErrors() {
		return nil, syntax.Failure(diags)
	}
	for _, item := range list {
		param, err := keyword(item)
		if err != nil {
			return nil, err
		}
		f.params = append(f.params, param)
	}
	if a := b.Body.Attributes["variadic_params"]; a != nil {
		var err error
		if f.variadic, err = keyword(a.Expr); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// keyword returns a bare name, which in JSON is a string.
func keyword(e hcl.Expression) (string, error) {
	if name := hcl.ExprAsKeyword(e); name != "" {
		return name, nil
	}
	if t, ok := e.(*hclsyntax.TemplateExpr); ok && t.IsStringLiteral() {
		if v, diags := t.Value(nil); !diags.HasErrors() && hclsyntax.ValidIdentifier(v.AsString()) {
			return v.AsString(), nil
		}
	}
	return "", syntax.ErrorAt(e.Range(), "the name of a parameter is missing: write it without quotes")
}

// function evaluates what a function of the definition refers to, and makes it known. A function named like one of the standard library is
// never called, as with buildx.
func (e *evaluator) function(name string) error {
	f := e.functions[name]
	if f == nil || f.done {
		return nil
	}
	if _, ok := e.scope.Functions[name]; ok {
		f.done = true
		return nil
	}
	if err := e.enter("the function "+name, f.block.TypeRange); err != nil {
		return err
	}
	defer e.leave()
	p, err := e.prepare(f.block.Body.Attributes["result"].Expr)
	if err != nil {
		return err
	}
	local := func(name string) bool { return slices.Contains(f.params, name) || name == f.variadic }
	if err := e.needs(p, local); err != nil {
		return err
	}
	for _, ref := range p.refs {
		if root := ref.RootName(); !local(root) && e.scope.Variables[root] == cty.NilVal {
			return syntax.ErrorAt(ref.SourceRange(), "the function %s refers to %s, which is neither a parameter nor a variable", name, root)
		}
	}
	e.scope.Functions[name] = e.callable(f, p)
	f.done = true
	return nil
}

// callable returns the function of a function block.
func (e *evaluator) callable(f *userFunction, p *expression) function.Function {
	spec := &function.Spec{Type: function.StaticReturnType(cty.DynamicPseudoType)}
	for _, name := range f.params {
		spec.Params = append(spec.Params, function.Parameter{Name: name, Type: cty.DynamicPseudoType})
	}
	if f.variadic != "" {
		spec.VarParam = &function.Parameter{Name: f.variadic, Type: cty.DynamicPseudoType}
	}
	spec.Impl = func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		e.meter.Enter(f.block.TypeRange)
		defer e.meter.Leave()
		scope := e.scope.NewChild()
		scope.Variables = map[string]cty.Value{}
		for i, name := range f.params {
			scope.Variables[name] = args[i]
		}
		if f.variadic != "" {
			scope.Variables[f.variadic] = cty.TupleVal(args[len(f.params):])
		}
		v, diags := p.tree.Value(scope)
		if diags.HasErrors() {
			return cty.DynamicVal, errors.New(fmt.Sprint(syntax.Failure(diags)))
		}
		return v, nil
	}
	return function.New(spec)
}
