// Package ghatest is a server of GitHub's cache for Actions: version 2 of its protocol, and the storage that its addresses lead to. An
// entry belongs to the scope that the token of its writer may write to, and a key is looked for in the scopes that a token may read, one
// after the other: as it is, and then by its beginning, the newest entry first.
package ghatest

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"
)

// Token is that of a job on the default branch. BranchToken is that of one on another branch, which also reads what the default branch has,
// and ReadToken that of a pull request from a fork, which writes nothing.
const (
	Token       = "job-token"
	BranchToken = "branch-token"
	ReadToken   = "fork-token"
)

// scopes are those that a token may read, in their order. The first is the one that it writes to.
var scopes = map[string][]string{
	Token:       {"refs/heads/main"},
	BranchToken: {"refs/heads/branch", "refs/heads/main"},
	ReadToken:   {"refs/pull/1/merge", "refs/heads/main"},
}

type entry struct {
	scope        string
	key, version string
	blocks       map[string][]byte
	data         []byte
	stored, done bool
}

// Server is a server of a cache.
type Server struct {
	URL string

	http     *httptest.Server
	mu       sync.Mutex
	entries  []*entry
	requests int
}

// Start starts a server of an empty cache, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s := New()
	t.Cleanup(s.Close)
	return s
}

// New starts a server of an empty cache. Close must be called.
func New() *Server {
	s := &Server{}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = s.http.URL + "/"
	return s
}

// Close ends the server.
func (s *Server) Close() { s.http.Close() }

// Requests returns how many requests were made since it was called last.
func (s *Server) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.requests
	s.requests = 0
	return n
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	if strings.HasPrefix(r.URL.Path, "/storage/") {
		s.storage(w, r, body)
		return
	}
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"code":%q,"msg":"refused"}`, code)
	}
	method := path.Base(r.URL.Path)
	writes := method != "GetCacheEntryDownloadURL"
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	reads := scopes[token]
	switch {
	case token == ReadToken && writes:
		refuse(http.StatusForbidden, "permission_denied")
		return
	case reads == nil:
		refuse(http.StatusUnauthorized, "unauthenticated")
		return
	}
	var in struct {
		Key         string   `json:"key"`
		Version     string   `json:"version"`
		RestoreKeys []string `json:"restore_keys"`
		Size        int64    `json:"size_bytes,string"`
	}
	if err := json.Unmarshal(body, &in); err != nil || in.Key == "" || in.Version == "" || len(in.Key) > 512 || strings.Contains(in.Key, ",") {
		refuse(http.StatusBadRequest, "invalid_argument")
		return
	}
	at := -1
	for i, e := range s.entries {
		if e.scope == reads[0] && e.key == in.Key && e.version == in.Version {
			at = i
		}
	}
	out := map[string]any{"ok": true}
	switch method {
	case "CreateCacheEntry":
		if at >= 0 {
			refuse(http.StatusConflict, "already_exists")
			return
		}
		s.entries = append(s.entries, &entry{scope: reads[0], key: in.Key, version: in.Version, blocks: map[string][]byte{}})
		out["signed_upload_url"] = fmt.Sprintf("%sstorage/%d?sig=secret", s.URL, len(s.entries)-1)
	case "FinalizeCacheEntryUpload":
		if at < 0 || !s.entries[at].stored || int64(len(s.entries[at].data)) != in.Size {
			refuse(http.StatusBadRequest, "invalid_argument")
			return
		}
		s.entries[at].done = true
		out["entry_id"] = fmt.Sprint(at)
	case "GetCacheEntryDownloadURL":
		found := s.find(reads, in.Version, in.Key, in.RestoreKeys)
		if found < 0 {
			out["ok"] = false
			break
		}
		out["signed_download_url"] = fmt.Sprintf("%sstorage/%d?sig=secret", s.URL, found)
		out["matched_key"] = s.entries[found].key
	default:
		refuse(http.StatusNotFound, "bad_route")
		return
	}
	json.NewEncoder(w).Encode(out)
}

// find returns the number of the entry that a client gets, or -1.
func (s *Server) find(scopes []string, version, key string, prefixes []string) int {
	for _, scope := range scopes {
		newest := func(matches func(string) bool) int {
			for i := len(s.entries) - 1; i >= 0; i-- {
				if e := s.entries[i]; e.done && e.scope == scope && e.version == version && matches(e.key) {
					return i
				}
			}
			return -1
		}
		if i := newest(func(k string) bool { return k == key }); i >= 0 {
			return i
		}
		for _, prefix := range prefixes {
			if i := newest(func(k string) bool { return strings.HasPrefix(k, prefix) }); i >= 0 {
				return i
			}
		}
	}
	return -1
}

// storage is that of block blobs (Azure Storage services REST API, "Put Blob", "Put Block", "Put Block List").
func (s *Server) storage(w http.ResponseWriter, r *http.Request, body []byte) {
	var n int
	_, err := fmt.Sscanf(r.URL.Path, "/storage/%d", &n)
	if err != nil || n < 0 || n >= len(s.entries) || r.URL.Query().Get("sig") != "secret" ||
		r.Header.Get("Authorization") != "" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	e := s.entries[n]
	if r.Method == http.MethodGet {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(e.data))
		return
	}
	switch r.URL.Query().Get("comp") {
	case "block":
		e.blocks[r.URL.Query().Get("blockid")] = body
	case "blocklist":
		var list struct{ Latest []string }
		if xml.Unmarshal(body, &list) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		for _, id := range list.Latest {
			e.data = append(e.data, e.blocks[id]...)
		}
		e.stored = true
	default:
		e.data, e.stored = body, true
	}
	w.WriteHeader(http.StatusCreated)
}
