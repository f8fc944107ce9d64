#compdef kiln
# zsh completion for kiln. Nothing of a command line is run: kiln reads words as they are written, with their quotes.
_kiln() {
    local out directive line value description
    out=$("${${(Q)words[1]}/#\~\//$HOME/}" __completeRaw "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null) || return 1
    directive=${out##*:}
    out=${out%:*}
    ((directive & 1)) && return 1

    # What is offered for --flag=VALUE is the value.
    if [[ $PREFIX == -*=* ]]; then
        IPREFIX+=${PREFIX%%=*}=
        PREFIX=${PREFIX#*=}
    fi
    if ((directive & 16 || !(directive & 4))); then
        if [[ $PREFIX == *=* ]]; then
            IPREFIX+=${PREFIX%=*}=
            PREFIX=${PREFIX##*=}
        fi
        if ((directive & 16)); then _files -/; else _files; fi
        return
    fi

    local -a offers options
    for line in "${(@f)out}"; do
        [[ -n $line ]] || continue
        value=${line%%$'\t'*}
        description=${line#*$'\t'}
        value=${value//:/\\:}
        if [[ $line == *$'\t'* ]]; then offers+=("$value:$description"); else offers+=("$value"); fi
    done
    ((directive & 2)) && options+=(-S '')
    local -a order
    ((directive & 32)) && order=(-V)
    _describe $order kiln offers "${options[@]}"
}

if [[ $funcstack[1] == _kiln ]]; then
    _kiln "$@"
else
    compdef _kiln kiln
fi
