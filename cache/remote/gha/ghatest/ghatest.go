// Package ghatest is a server of GitHub's cache for Actions: version 2 of its protocol, and the storage that its addresses lead to. There is
// one scope, and keys are found by their beginning, the newest first.
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

// Token may read and write, and ReadToken only read.
const (
	Token     = "job-token"
	ReadToken = "fork-token"
)

type entry struct {
	key, version string
	blocks       map[string][]byte
	data         []byte
	stored, done bool
}

// Server is a server of an empty cache.
type Server struct {
	URL string

	mu       sync.Mutex
	entries  []*entry
	requests int
}

// Start starts a server, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{}
	h := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(h.Close)
	s.URL = h.URL + "/"
	return s
}

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
	switch token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "); {
	case token == ReadToken && writes:
		refuse(http.StatusForbidden, "permission_denied")
		return
	case token != Token && token != ReadToken:
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
		if e.key == in.Key && e.version == in.Version {
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
		s.entries = append(s.entries, &entry{key: in.Key, version: in.Version, blocks: map[string][]byte{}})
		out["signed_upload_url"] = fmt.Sprintf("%sstorage/%d?sig=secret", s.URL, len(s.entries)-1)
	case "FinalizeCacheEntryUpload":
		if at < 0 || !s.entries[at].stored || int64(len(s.entries[at].data)) != in.Size {
			refuse(http.StatusBadRequest, "invalid_argument")
			return
		}
		s.entries[at].done = true
		out["entry_id"] = fmt.Sprint(at)
	case "GetCacheEntryDownloadURL":
		found := -1
		if at >= 0 && s.entries[at].done {
			found = at
		}
		for _, prefix := range in.RestoreKeys {
			for i := len(s.entries) - 1; i >= 0 && found < 0; i-- {
				if e := s.entries[i]; e.done && e.version == in.Version && strings.HasPrefix(e.key, prefix) {
					found = i
				}
			}
		}
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

// storage is that of block blobs (Azure Storage services REST API, "Put Blob", "Put Block", "Put Block List").
func (s *Server) storage(w http.ResponseWriter, r *http.Request, body []byte) {
	var n int
	if _, err := fmt.Sscanf(r.URL.Path, "/storage/%d", &n); err != nil || n < 0 || n >= len(s.entries) || r.URL.Query().Get("sig") != "secret" ||
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
