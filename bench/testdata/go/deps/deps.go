// Package deps imports what the program imports.
package deps

import (
	_ "encoding/json"
	_ "log/slog"
	_ "net/http"
	_ "os/signal"

	_ "github.com/go-chi/chi/v5"
	_ "github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
)
