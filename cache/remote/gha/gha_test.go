package gha

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/cache/remote/gha/ghatest"
	"github.com/kilnbuild/kiln/cache/remote/remotetest"
)

func open(t *testing.T, s *ghatest.Server, token string) *Cache {
	t.Helper()
	o := Options{URL: s.URL, Token: token, Scope: "kiln"}
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRepository(t *testing.T) {
	s := ghatest.Start(t)
	remotetest.Run(t, remotetest.Traits{Unlisted: true}, func(t *testing.T) remote.Repository { return open(t, s, ghatest.Token) })
}

// A writer that was killed after it had created an entry does not block others, and reading a cache takes two requests.
func TestAbandoned(t *testing.T) {
	s := ghatest.Start(t)
	c := open(t, s, ghatest.Token)
	if _, err := remote.Publish(t.Context(), c, "kiln", remotetest.One("one"), pack.Limit{}); err != nil {
		t.Fatal(err)
	}
	var a json.RawMessage
	if err := c.call(t.Context(), "CreateCacheEntry", map[string]any{"key": manifest("kiln") + "2", "version": version}, &a); err != nil {
		t.Fatal(err)
	}
	next := open(t, s, ghatest.Token)
	next.abandoned = time.Millisecond
	if _, err := remote.Publish(t.Context(), next, "kiln", remotetest.One("two"), pack.Limit{}); err != nil {
		t.Fatal(err)
	}
	s.Requests()
	h, err := remote.Read(t.Context(), open(t, s, ghatest.ReadToken), "kiln")
	if err != nil || !h.Pack.Has(remotetest.One("one"), time.Hour) || !h.Pack.Has(remotetest.One("two"), time.Hour) {
		t.Errorf("records are lost: %v", err)
	}
	if n := s.Requests(); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// A branch begins with what the default branch has, which does not see what the branch writes, and is not blocked by it.
func TestScopes(t *testing.T) {
	s := ghatest.Start(t)
	publish := func(token, name string) {
		t.Helper()
		if _, err := remote.Publish(t.Context(), open(t, s, token), "kiln", remotetest.One(name), pack.Limit{}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(token, name string, want bool) {
		t.Helper()
		h, err := remote.Read(t.Context(), open(t, s, token), "kiln")
		if err != nil {
			t.Fatal(err)
		}
		if got := h.Pack.Has(remotetest.One(name), time.Hour); got != want {
			t.Errorf("%s reads %s: %t, want %t", token, name, got, want)
		}
	}
	publish(ghatest.Token, "one")
	publish(ghatest.BranchToken, "branch")
	publish(ghatest.Token, "two")
	publish(ghatest.BranchToken, "more")
	for name, want := range map[string]bool{"one": true, "two": true, "branch": false, "more": false} {
		check(ghatest.Token, name, want)
		check(ghatest.ReadToken, name, want)
	}
	// What the default branch gets after the branch has begun its own cache is not seen there: the service finds the branch's own first.
	for name, want := range map[string]bool{"one": true, "two": false, "branch": true, "more": true} {
		check(ghatest.BranchToken, name, want)
	}
}

func TestRefused(t *testing.T) {
	s := ghatest.Start(t)
	for token, want := range map[string]string{ghatest.ReadToken: "may only read", "other": "401 "} {
		_, err := remote.Publish(t.Context(), open(t, s, token), "kiln", remotetest.One("one"), pack.Limit{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(fmt.Sprint(err), token) {
			t.Errorf("%s: %v", token, err)
		}
	}
}
