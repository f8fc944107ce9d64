# fish completion for kiln. Nothing of a command line is run.
function __kiln_complete
    set -l words (string replace --regex -- '^~/' "$HOME/" (commandline -opc))
    set -l word (commandline -ct)
    set -l program $words[1]
    type -q -- $program; or set program kiln
    set -l out ($program __complete $words[2..-1] "$word" 2>/dev/null); or return
    test (count $out) -gt 0; or return
    set -l directive (string sub --start 2 -- $out[-1])
    set -e out[-1]

    # What is offered for --flag=VALUE is the value.
    set -l prefix (string match --regex -- '^-[^=]*=' $word)
    if test (math "bitand($directive, 1)") -ne 0
        return
    end
    if test (math "bitand($directive, 4)") -eq 0
        set prefix (string match --regex -- '^.*=' $word)
        set -l path (string replace --regex -- '^.*=' '' $word)
        if test (math "bitand($directive, 16)") -ne 0
            set out (__fish_complete_directories "$path" '')
        else
            set out (__fish_complete_path "$path")
        end
    end
    for line in $out
        printf '%s%s\n' "$prefix" $line
    end
end
complete -c kiln -f -k -a '(__kiln_complete)'
