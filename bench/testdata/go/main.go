// Server answers with what is in a table.
package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"os/signal"

	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const version = "0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		slog.Error("connect", "error", err)
		os.Exit(1)
	}
	defer pool.Close()
	r := chi.NewRouter()
	r.Handle("/metrics", promhttp.Handler())
	r.Get("/items/{name}", func(w http.ResponseWriter, r *http.Request) {
		var count int
		err := pool.QueryRow(r.Context(), "SELECT count FROM items WHERE name = $1", chi.URLParam(r, "name")).Scan(&count)
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"count": count, "version": version})
	})
	server := &http.Server{Addr: ":8080", Handler: r}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	slog.Info("end", "error", server.ListenAndServe())
}
